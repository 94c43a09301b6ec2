"""The page and its data over HTTP, on loopback, read-only. Every path starts with a random token, as in Jupyter.

    GET /TOKEN/                                  the page
    GET /TOKEN/static/app.js                     its files
    GET /TOKEN/api/runs                          names of the runs
    GET /TOKEN/api/overview                      progress of each run
    GET /TOKEN/api/compare?runs=a,b              seeds as one line, and the differences of the configs
    GET /TOKEN/api/runs/NAME                     config, result, status
    GET /TOKEN/api/runs/NAME/metrics             curves
    GET /TOKEN/api/runs/NAME/groups?filter=...   a page of the list of groups (`runs.Query`)
    GET /TOKEN/api/runs/NAME/groups/12/0         one group
    GET /TOKEN/api/runs/NAME/groups/12/0/calls   the requests to the teacher about it (`calls`)
    GET /TOKEN/api/runs/NAME/groups/12/0/tokens  log-probability of each token of its answers
    GET /TOKEN/api/runs/NAME/calls/3F2A...       one request with its reply
    GET /TOKEN/api/runs/NAME/criteria            clusters of criteria; criteria/ID is one of them
    GET /TOKEN/api/runs/NAME/judge               calibrations, second judgements
    GET /TOKEN/api/runs/NAME/benchmarks          results; with result=... problem by problem, with problem=... answers

The browser may only run scripts of this server, and none inside the page itself. Foreign text is sent to it as JSON. A
request must name this host, so that another site's page cannot read the data through its own DNS name.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib.resources
import json
import logging
import pathlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from aiohttp import web
from aiohttp.typedefs import Middleware

from ropd_jax.types import UserError
from ropd_jax.viewer.criteria import WHOLE_S
from ropd_jax.viewer.overview import Overview, compare
from ropd_jax.viewer.reports import Reports, answers, benchmarks, judge, problems
from ropd_jax.viewer.runs import PAGE, Query, Run, runs_in

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address contains the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STATIC = {
    "app.js": "text/javascript",
    "benchmarks.js": "text/javascript",
    "calls.js": "text/javascript",
    "charts.js": "text/javascript",
    "criteria.js": "text/javascript",
    "curves.js": "text/javascript",
    "diff.js": "text/javascript",
    "dom.js": "text/javascript",
    "groups.js": "text/javascript",
    "judge.js": "text/javascript",
    "microscope.js": "text/javascript",
    "runs.js": "text/javascript",
    "style.css": "text/css",
    "texts.js": "text/javascript",
    "tokens.js": "text/javascript",
}
VENDOR = {  # see vendor/vendor.json
    "vendor/markdown-it.umd.min.js": "text/javascript",
    "vendor/temml.min.js": "text/javascript",
    "vendor/uPlot.esm.js": "text/javascript",
    "vendor/uPlot.min.css": "text/css",
}
_PRELOAD = ", ".join(  # all modules at once, instead of one after another as they are imported
    f"<static/{name}>; rel=modulepreload" for name in (*STATIC, *VENDOR) if name.endswith(".js") and ".min." not in name
)
_LOCAL = ("127.0.0.1", "localhost", "[::1]")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(directory: pathlib.Path, token: str) -> web.Application:
    """The aiohttp application for a run or a folder of runs.

    Raises:
        UserError: no run found.
    """
    runs_in(directory)
    opened: dict[str, Run] = {}
    overview, reports = Overview(), Reports(directory)
    root = web.Application()
    app = web.Application()

    def run_of(request: web.Request) -> Run:
        name = request.match_info["run"]
        known = runs_in(directory)
        if name not in known:
            raise UserError(f"{name!r:.80} is not a run of this folder")
        return opened.setdefault(name, Run(known[name]))

    def answer(work: Callable[[web.Request], object]) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            return web.json_response(await asyncio.to_thread(work, request), dumps=_json)

        return handler

    def groups(request: web.Request) -> object:
        return run_of(request).groups(query_of(request.query))

    def group(request: web.Request) -> object:
        return run_of(request).group(int(request.match_info["step"]), int(request.match_info["group"]))

    def compared(request: web.Request) -> object:
        known = runs_in(directory)
        names = [name for name in request.query.get("runs", "").split(",") if name]
        if not names or (strange := [name for name in names if name not in known]):
            raise UserError(f"{(strange or names)!r:.80} are not runs of this folder; choose some from the list")
        return compare({name: known[name] for name in dict.fromkeys(names)})

    def clusters(request: web.Request) -> object:
        asked_by_a_page = "Sec-Fetch-Mode" in request.headers  # pages show progress; bundles need the whole reply
        return run_of(request).criteria.clusters(**({} if asked_by_a_page else {"wait_s": WHOLE_S}))

    def cluster(request: web.Request) -> object:
        return run_of(request).criteria.cluster(request.match_info["id"])

    def judged(request: web.Request) -> object:
        run = run_of(request)
        return judge(reports, run.directory, run.index)

    def measured(request: web.Request) -> object:
        run, name, values = run_of(request), request.query.get("result", ""), request.query
        if not name:
            return benchmarks(reports, run.directory)
        if values.get("problem"):
            return answers(reports, name, values["problem"])
        return problems(reports, name, values.get("against", ""))

    def calls(request: web.Request) -> object:
        return run_of(request).calls(int(request.match_info["step"]), int(request.match_info["group"]))

    def call(request: web.Request) -> object:
        return run_of(request).call(request.match_info["key"])

    def tokens(request: web.Request) -> object:
        return run_of(request).tokens(int(request.match_info["step"]), int(request.match_info["group"]))

    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text=_file("index.html"), content_type="text/html", headers={"Link": _PRELOAD})

    async def static(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        kind = STATIC.get(name) or VENDOR.get(name)
        if kind is None:
            raise web.HTTPNotFound
        return web.Response(text=_file(name), content_type=kind)

    app.router.add_get("/", page)
    app.router.add_get(r"/static/{name:[\w./-]+}", static)
    app.router.add_get("/api/runs", answer(lambda request: {"runs": list(runs_in(directory))}))
    app.router.add_get(
        "/api/overview", answer(lambda _: {"runs": [overview.of(n, p) for n, p in runs_in(directory).items()]})
    )
    app.router.add_get("/api/compare", answer(compared))
    app.router.add_get("/api/runs/{run}/criteria", answer(clusters))
    app.router.add_get(r"/api/runs/{run}/criteria/{id:\w{1,40}}", answer(cluster))
    app.router.add_get("/api/runs/{run}/judge", answer(judged))
    app.router.add_get("/api/runs/{run}/benchmarks", answer(measured))
    app.router.add_get("/api/runs/{run}", answer(lambda request: run_of(request).about()))
    app.router.add_get("/api/runs/{run}/metrics", answer(lambda request: run_of(request).metrics()))
    app.router.add_get("/api/runs/{run}/groups", answer(groups))
    app.router.add_get(r"/api/runs/{run}/groups/{step:\d{1,9}}/{group:\d{1,9}}", answer(group))
    app.router.add_get(r"/api/runs/{run}/groups/{step:\d{1,9}}/{group:\d{1,9}}/calls", answer(calls))
    app.router.add_get(r"/api/runs/{run}/groups/{step:\d{1,9}}/{group:\d{1,9}}/tokens", answer(tokens))
    app.router.add_get("/api/runs/{run}/calls/{key:[0-9a-f]{64}}", answer(call))
    root.middlewares.append(_guard(token))
    root.add_subapp(f"/{token}/", app)
    return root


def _guard(token: str) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.path.split("/")[1] if "/" in request.path else ""
        response: web.StreamResponse
        if request.host.rpartition(":")[0] not in _LOCAL:
            response = web.json_response({"error": "this server answers only on 127.0.0.1"}, status=403)
        elif not hmac.compare_digest(given.encode(), token.encode()):
            response = web.json_response({"error": "open the full address that ropd view printed"}, status=403)
        else:
            try:
                response = await handler(request)
            except UserError as error:
                response = web.json_response({"error": str(error)}, status=404)
            except web.HTTPException as error:
                response = web.json_response({"error": error.reason}, status=error.status)
        response.headers.update(HEADERS)
        return response

    return guard


def query_of(values: Mapping[str, str]) -> Query:
    """The query of a URL.

    Raises:
        UserError: an invalid value.
    """
    try:
        return Query(
            filters=tuple(f for f in values.get("filter", "").split(",") if f),
            sort=values.get("sort", "step"),
            descending=values.get("desc") == "1",
            text=values.get("q", "").strip()[:400],
            step=int(values["step"]) if values.get("step") else None,
            offset=int(values.get("offset", 0)),
            limit=int(values.get("limit", PAGE)),
        )
    except ValueError as error:
        raise UserError(f"step, offset and limit must be numbers ({error!s:.100})") from error


def _json(value: object) -> str:
    """JSON for browsers: a file can contain NaN, which JSON lacks."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(json.dumps(value), parse_constant=lambda name: None))


def _file(name: str) -> str:
    return importlib.resources.files("ropd_jax.viewer").joinpath("static", *name.split("/")).read_text(encoding="utf-8")


@contextlib.asynccontextmanager
async def running(directory: pathlib.Path, *, port: int = 0, token: str = "") -> AsyncIterator[str]:
    """A server during the ``async with``; yields the address of the page. Port 0 is any free port.

    Raises:
        UserError: no run found, or the port is taken.
    """
    token = token or secrets.token_urlsafe(24)
    runner = web.AppRunner(make_app(directory, token), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as e:
            raise UserError(f"cannot listen on {HOST}:{port}: {e.strerror or e}; expected a free --port") from e
        yield f"http://{HOST}:{runner.addresses[0][1]}/{token}/"
    finally:
        await runner.cleanup()


def serve(directory: pathlib.Path, *, port: int, told: Callable[[str], None]) -> None:
    """Serves until it is interrupted. ``told`` is called with the address once it is reachable."""

    async def main() -> None:
        async with running(directory, port=port) as url:
            told(url)
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):  # the normal way to end
        asyncio.run(main())
