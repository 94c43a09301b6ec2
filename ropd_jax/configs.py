"""Every key of a run, with its default. An experiment starts from `default()` and changes a few lines.

The defaults are the paper's settings (arXiv 2605.07396, Table A2) if it gives them; the released code's value is noted
if it differs. Properties of a checkpoint (layers, widths, stop tokens) are not here.
"""

from __future__ import annotations

import inspect
import os
import pathlib
import re
import types
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ropd_jax.types import UserError
from ropd_jax.utils import shipped
from ropd_jax.utils.paths import only_local
from ropd_jax.utils.suggest import near
from ropd_jax.utils.user_module import load_user_module, user_code

OPPOSITE = ", with the opposite value"
RENAMED = {  # key of an earlier version -> its current name, in the same section
    "ropd.told": f"ropd.blind{OPPOSITE}",
    "stream.carry_after_s": "stream.straggler_timeout_s",
    "teacher.scripted.book": "teacher.scripted.answer_key",
}
EARLIER = {  # key -> the behaviour of versions without it, and the keys that must not be 0 for it to matter
    "loss.kl_on": ("informative", ("loss.kl_coef", "loss.entropy_coef")),
    "optim.decay_mask": ("all", ("optim.weight_decay",)),
}


def default() -> ConfigDict:
    """A complete, unlocked config. The run locks it: a key that is not here is an error."""
    cfg = ConfigDict()
    cfg.seed = 0  # for data order, sampling and the teacher's requests
    cfg.steps = 531  # optimizer steps are steps * optim.minibatches; 531 * 32 prompts = one epoch of DAPO-Math-17k
    cfg.method = "ropd"  # a file in ropd_jax/methods, or the path of your own .py file
    cfg.compile_cache = True  # store compiled programs for the next start; directory: docs/resume.md

    cfg.student = ConfigDict()
    cfg.student.checkpoint = "tiny"  # "tiny" (shipped), "smollm2", a .gguf file, a directory, Qwen/Qwen3-4B (Hub)
    cfg.student.dtype = "float32"  # compute and KV cache; parameters stay float32
    cfg.student.chat_template = ""  # a Jinja file, for a checkpoint that has no chat template
    cfg.student.enable_thinking = placeholder(bool)  # chat template option; None: its default. Released code: False
    cfg.student.lora = ConfigDict()
    cfg.student.lora.rank = 0  # 0 is full fine-tuning, as in the paper; above 0: frozen weights, trained adapters
    cfg.student.lora.alpha = 32.0  # the low-rank path is multiplied by alpha / rank
    cfg.student.lora.targets = ("attn.*", "mlp.*")  # patterns over attn.q k v o and mlp.gate up down
    cfg.student.lora.base_dtype = "float32"  # of the frozen weights; or "bfloat16", "int8"

    cfg.data = ConfigDict()
    cfg.data.source = "reasoning_gym"  # or "instructions", "jsonl", or "published": a set by its name (docs/data.md)
    cfg.data.task = "chain_sum"  # reasoning-gym task, name of a published set; jsonl: exact, math, choice, ... or ""
    cfg.data.options = ConfigDict()  # options of the reasoning-gym task
    cfg.data.path = ""  # jsonl: rows, or .parquet; published: a directory, "tfds:DIR", "hub", or "" for ROPD_DATA
    cfg.data.heldout_path = ""  # jsonl: held-out rows
    cfg.data.seed = 10_000_000  # item i is made from seed + i: the two seeds must be further apart than the sizes
    cfg.data.heldout_seed = 90_000_000  # the same for the held-out questions
    cfg.data.heldout = True  # False: no held-out data, so no accuracy. jsonl without a heldout_path has none either
    cfg.data.size = 2_000  # questions; 0 or None: all of a set (docs/data.md). Prompts left out are counted
    cfg.data.heldout_size = 500  # held-out questions; 0 or None: all of a set
    cfg.data.sources = ()  # several sources with weights, mappings of the keys above: docs/data.md. () is one source
    cfg.data.heldout_from = ""  # the only source of held-out questions; "": all sources, by their weights
    cfg.data.curriculum = 0.0  # b > 1: prompts of medium pass rate are drawn more often, up to b times; 0 is off
    cfg.data.template = "{question}"  # the user's message; {question} becomes the question
    cfg.data.system = ""  # system message; "" for none
    cfg.data.prompts_per_step = 32  # P
    cfg.data.max_prompt_tokens = 2_048  # longer prompts are dropped and counted

    cfg.sampling = ConfigDict()
    cfg.sampling.rollouts = 8  # G
    cfg.sampling.max_tokens = 8_192  # maximum length of an answer
    cfg.sampling.temperature = 1.0  # of the rollouts; 0 is greedy
    cfg.sampling.top_k = 0  # 0 and 1.0 keep all tokens; the effect of other values: docs/update.md
    cfg.sampling.top_p = 1.0  # see top_k
    cfg.sampling.prompts_at_once = 0  # number of prompts whose rollouts decode side by side; 0: all of a step
    cfg.sampling.resample = 0  # rounds in which groups of equal rewards are replaced by new prompts (DAPO); 0 never
    cfg.sampling.chunk = 8  # tokens between two checks by the host, which then fills free rows
    cfg.sampling.cache_dtype = ""  # of keys and values: "float32", "bfloat16" or "int8"; "" is student.dtype
    cfg.sampling.pool = 1.0  # pages of the cache, as a share of what all rows need at most; below 1: docs/tpu.md
    cfg.sampling.attention = "auto"  # "paged": a kernel for TPUs, the choice of "auto" there; else "xla" (docs/tpu.md)
    cfg.sampling.copy_weights = True  # for the sampler, in student.dtype and unsplit over fsdp; False: docs/tpu.md
    cfg.sampling.stop = ()  # texts that end an answer, in addition to the checkpoint's stop tokens
    cfg.sampling.engine = "own"  # or "openai": rollouts come from a server, vLLM or SGLang (docs/engine.md)
    cfg.sampling.server = ConfigDict()  # of engine=openai
    cfg.sampling.server.base_url = "http://127.0.0.1:8000/v1"  # address of the server
    cfg.sampling.server.model = ""  # the model's name there; "" is the only one that the server lists
    cfg.sampling.server.api_key_env = ""  # name of the environment variable with its key; "" sends no key
    cfg.sampling.server.sync = ""  # how it gets new weights: "vllm", "sglang", "vllm_lora" (adapters), or "none"
    cfg.sampling.server.sync_every = 1  # updates between two syncs; 0: never, all rollouts use the initial weights
    cfg.sampling.server.weights_dir = ""  # where the server reads them, under the same path; "" is RUN/server_weights
    cfg.sampling.server.answers_per_request = 0  # 0 requests all answers to a prompt at once, as the field n
    cfg.sampling.server.concurrency = 256  # most requests in flight
    cfg.sampling.server.timeout_s = 1800.0  # of one request, whose answers can be long
    cfg.sampling.server.attempts = 5  # attempts of a request that the server fails
    cfg.sampling.server.wait_s = 1800.0  # while it is unreachable the run waits this long, then stops
    cfg.sampling.server.max_gap = 0.1  # |server's - trainer's log-prob|, mean of a group's tokens; 0: not compared

    cfg.teacher = ConfigDict()
    cfg.teacher.provider = "scripted"  # or "gemini", "openai" (any server with chat completions)
    cfg.teacher.base_url = ""  # "" is the provider's own
    cfg.teacher.api_key_env = ""  # name of the environment variable; "" is the provider's usual one
    cfg.teacher.organization = ""  # of OpenAI's account; "" is the key's own
    cfg.teacher.project = ""  # of OpenAI's account or of Vertex AI
    cfg.teacher.vertexai = False  # gemini: through Vertex AI with application-default credentials (docs/providers.md)
    cfg.teacher.location = ""  # of Vertex AI; "" is "global"
    cfg.teacher.headers = ConfigDict()  # {"X-Title": "ROPD", "X-Org": "env:MY_ORG"}: a secret is named, never written
    cfg.teacher.concurrency = 64  # maximum requests in flight; adapts below it. Released code: 32, of which 4 were used
    cfg.teacher.min_concurrency = 1  # minimum, however overloaded the server is; the run starts with it
    cfg.teacher.requests_per_minute = placeholder(float)  # None: no bound. Released code: null became 1920
    cfg.teacher.tokens_per_minute = placeholder(float)  # input and output as the provider reports them; None: no bound
    cfg.teacher.timeout_s = 120.0  # of one attempt, without the time in our own queue. Released code: 480
    cfg.teacher.attempts = 5  # attempts of one request before its group is unscored. Released code: 3
    cfg.teacher.max_wait_s = 60.0  # longest wait between two attempts, including a server's Retry-After
    cfg.teacher.outage_wait_s = (
        1800.0  # while a server is unreachable the step waits this long, then the run stops; 0: neither
    )
    cfg.teacher.hedge_after_s = 0.0  # resend a call that takes longer, which costs its tokens twice; 0: never
    cfg.teacher.order = "longest_first"  # the step ends sooner; "finished_first": its first groups do (docs/teacher.md)
    cfg.teacher.max_answer_chars = 60_000  # longer answers are cut in the middle, marked; 8,192 tokens: about 33,000
    cfg.teacher.max_failed_frac = 0.5  # of the last failed_window groups; more invalid ones stop the run, exit code 3
    cfg.teacher.failed_window = 64  # groups; two steps of the paper's 32 prompts
    cfg.teacher.check = True  # one cheap call per role before weights are loaded; never in a replay or when scripted
    cfg.teacher.references = 4  # m
    cfg.teacher.references_from = ()  # several models: names, or mappings of keys of teacher.reference that differ
    cfg.teacher.index = (
        ""  # JSONL of references collected in advance (ropd collect-references); "" collects during the run
    )
    cfg.teacher.reference = _role(temperature=0.7, max_output_tokens=8_192)  # paper: 0, which makes m equal texts
    cfg.teacher.rubricator = _role(temperature=0.7, max_output_tokens=8_192)
    cfg.teacher.verifier = _role(temperature=0.0, max_output_tokens=4_096)
    cfg.teacher.verifier.form = ""  # of its reply: lists, keyed, keyed_reason, keyed_reasons, by_criterion; "" is keyed
    cfg.teacher.verifier.answers_per_call = 0  # 0 shows all answers of a group in one call; 1 is one call per answer
    cfg.teacher.verifier.criteria_per_call = 0  # 0 verifies all criteria in one call
    cfg.teacher.verifier.examples = 0  # worked examples in the prompt, an even number up to 8
    cfg.teacher.verifier.votes = 1  # an odd number of verdicts each, of which the majority counts
    cfg.teacher.verifier.panel = ()  # several models that vote: names, or mappings of keys of teacher.verifier
    cfg.teacher.verifier.min_agreement = 0.5  # answers with a lower agreement of votes are unscored
    cfg.teacher.scorer = _role(temperature=0.0, max_output_tokens=4_096)  # grades, for t_judge, ovd and rar
    cfg.teacher.judge = _role(temperature=0.0, max_output_tokens=4_096)  # grades held-out answers; not used for rewards
    cfg.teacher.judge.model = ""  # "" for none; else a model not used for rewards, for the drift alarm
    cfg.teacher.tape = ConfigDict()
    cfg.teacher.tape.mode = "record"  # every answer is paid for once; or "replay", "refresh", "off"
    cfg.teacher.tape.path = ""  # "" is WORKDIR/tape.sqlite
    cfg.teacher.calibration = ""  # report.json of ropd calibrate-judge, recorded in result.json; "" if there is none
    cfg.teacher.prices = ""  # a TOML file with your prices, in addition to ropd_jax/teacher/traffic/prices.toml
    cfg.teacher.budget = ConfigDict()  # caps of the whole run; at a cap the run saves and ends with exit code 4
    cfg.teacher.budget.usd = 0.0  # 0: no cap
    cfg.teacher.budget.tokens = 0  # input and output together
    cfg.teacher.budget.calls = 0  # requests sent to the provider, retries included
    cfg.teacher.screen_criteria = True  # drop criteria that mention a reference or another answer, repeat one, ...
    cfg.teacher.rubric_reuse = "fresh"  # paper: a rubric for each group; or "per_epoch", "until_saturated"
    cfg.teacher.rubric_epochs = 2  # per_epoch: passes over the data that use the same rubric
    cfg.teacher.health = ConfigDict()
    cfg.teacher.health.repeat_frac = 0.0  # share of groups verified twice, with another order: flips, order bias
    cfg.teacher.scripted = ConfigDict()
    cfg.teacher.scripted.answer_key = ""  # JSONL of worked solutions; "" uses those of the data
    cfg.teacher.scripted.latency_s = 0.0  # mean seconds of a call
    cfg.teacher.scripted.fault_rate = 0.0  # share of calls that fail as a provider's do
    cfg.teacher.scripted.slip_rate = 0.0  # share of references with an arithmetic slip
    cfg.teacher.scripted.wrong_verdict_rate = 0.0  # share of verdicts that are inverted
    cfg.teacher.scripted.noise = ""  # how its verdicts err: a report of ropd calibrate-judge, or JSON; "" not at all
    cfg.teacher.scripted.bias = ""  # what its judgements reward besides quality: "self_praise:0.8,length:0.5"
    cfg.teacher.scripted.labels = ""  # JSONL of labelled verdicts whose truths its verifier uses (docs/judge.md)
    cfg.teacher.scripted.style = "full"  # its references: or "skips" (first line, then the answer), "prose"

    cfg.rewards = ConfigDict()
    cfg.rewards.exact_weight = 0.0  # w: reward = (1 - w) of the method's + w of the exact grade; docs/data.md

    cfg.ropd = ConfigDict()  # ablations (paper, Table 6 and text); the defaults are the paper's
    cfg.ropd.rubrics = "teacher"  # induced by the teacher; or "published": those of the data, fixed (docs/data.md)
    cfg.ropd.rubric_per = "group"  # or "pair": a rubric for each rollout and one reference
    cfg.ropd.blind = True  # the verifier does not see the source of an answer
    cfg.ropd.see_rollouts = True  # the rubric is induced from the contrast, not only from the references
    cfg.ropd.pool_references = True  # references are verified together with the rollouts
    cfg.ropd.least_criteria = 4  # K, from ...
    cfg.ropd.most_criteria = 12  # ... to
    cfg.ropd.variance_weights = False  # points times 4p(1-p) within each category (after POW3R); not in the paper
    cfg.ropd.reliability_weights = False  # points times their kind's reliability (teacher.calibration); not in paper
    cfg.ropd.dropout = 0.0  # share of criteria left out of a group's reward, redrawn for each group
    cfg.ropd.advantage = "total"  # of the reward; or "per_criterion": each its own group advantage, summed by points
    cfg.ropd.references_pass = 0.0  # drop criteria that a smaller share of references passes; 0 keeps all (paper)

    cfg.context = ConfigDict()  # methods that score rollouts under another prompt: rgsd, rcsd, cort, cripo
    cfg.context.max_tokens = 512  # maximum that a shown rubric adds to a prompt; rollouts above it are left out

    cfg.rgsd = ConfigDict()
    cfg.rgsd.mode = "sampled"  # one log-prob per token; "full": the divergence over the vocabulary; "top_k"
    cfg.rgsd.beta = 1.0  # full, top_k: 1 reverse KL, 0 forward KL, between them the generalised JSD
    cfg.rgsd.top_k = 64  # top_k: tokens that are likeliest when told the rubric; all others are one class

    cfg.rcsd = ConfigDict()
    cfg.rcsd.criteria = 4  # number of criteria shown, those with the most points; one scoring pass each

    cfg.cort = ConfigDict()
    cfg.cort.bound = 1.0  # nats; maximum change of a token's log-prob by the rubric for its weight

    cfg.cripo = ConfigDict()
    cfg.cripo.beta = 0.05  # weight of the distillation from unexplored criteria; 0.03 for a 4B student in the paper
    cfg.cripo.warmup_steps = 50  # steps without that distillation
    cfg.cripo.margin = 1.0  # nats by which a token must be likelier with the criterion than with its opposite

    cfg.evolving = ConfigDict()  # method "evolving"
    cfg.evolving.active = 5  # criteria of a prompt that stay while they discriminate, in addition to its first ones
    cfg.evolving.new = 5  # maximum number of criteria that a visit adds

    cfg.t_judge = ConfigDict()
    cfg.t_judge.references = True  # the judge sees the m references; unspecified in the paper

    cfg.ovd = ConfigDict()
    cfg.ovd.mode = "reward"  # score / 9 is the reward; or "filter": low-scored rollouts give way to demonstrations
    cfg.ovd.threshold = 3  # filter: minimum score of a rollout that stays; the paper's value is unknown (see ovd.py)

    cfg.rar = ConfigDict()
    cfg.rar.rubrics = "teacher"  # the teacher writes them; or "published": those of the data (docs/data.md)
    cfg.rar.mode = "explicit"  # weighted share of criteria; or "implicit": one grade given the rubric

    cfg.lopd = ConfigDict()  # the white-box teacher of lopd and exopd
    cfg.lopd.checkpoint = ""  # as student.checkpoint
    cfg.lopd.mode = "sampled"  # one log-prob per token; or "full": the divergence over the vocabulary
    cfg.lopd.beta = 1.0  # full: 1 reverse KL, 0 forward KL, between them the generalised JSD; TRL: 0.5
    cfg.lopd.dtype = "float32"  # of its weights and compute
    cfg.lopd.fsdp = 0  # its own mesh; 0 is the student's
    cfg.lopd.tp = 1  # of that mesh

    cfg.exopd = ConfigDict()
    cfg.exopd.scale = 1.25  # lambda; 1 is lopd

    cfg.gad = ConfigDict()  # the discriminator
    cfg.gad.warmup_steps = 0  # steps of cross-entropy for the student while D starts; its paper: one epoch, about 800
    cfg.gad.lr = 1e-6  # constant
    cfg.gad.b1 = 0.9  # Adam's, for the discriminator
    cfg.gad.b2 = 0.95  # Adam's, for the discriminator
    cfg.gad.clip_norm = 0.2  # maximum norm of the discriminator's gradient

    cfg.loss = ConfigDict()
    cfg.loss.normalize_std = True  # Eq. 6; the released code does not divide
    cfg.loss.aggregation = "seq_mean"  # Eq. 8; released code: token_mean
    cfg.loss.clip_low = 0.2  # ratios are clipped at 1 - clip_low
    cfg.loss.clip_high = 0.28  # and at 1 + clip_high
    cfg.loss.dual_clip = 0.0  # released code: 3.0
    cfg.loss.ratio = "token"  # or "sequence" (GSPO; its clips are about 3e-4 and 4e-4)
    cfg.loss.is_cap = 0.0  # above 0: truncated importance weights instead of the clip. Released code: 2.0, is_clip
    cfg.loss.is_clip = False  # True: the weights multiply the clipped loss (docs/update.md). Released code: True
    cfg.loss.kl_coef = 0.0  # weight of the KL to the initial student. Released code: off; GRPO's paper: 0.04
    cfg.loss.kl_kind = "k3"  # its estimate: "k1", "k2", "k3"
    cfg.loss.entropy_coef = 0.0  # weight of the entropy bonus
    cfg.loss.kl_on = "valid"  # tokens of the KL and entropy terms: all valid; or "informative": no equal rewards
    cfg.loss.overlong = "keep"  # answers cut at the limit: or "mask" (out of the loss), "shape" (DAPO's penalty)
    cfg.loss.overlong_buffer = 0  # shape: tokens before the limit over which the penalty grows; DAPO: a fifth
    cfg.loss.min_scored = 2  # a group with fewer scored rollouts is invalid

    cfg.optim = ConfigDict()
    cfg.optim.lr = 1e-6  # learning rate after warm-up
    cfg.optim.schedule = "cosine"  # released code: constant, no warm-up
    cfg.optim.schedule_steps = 0  # steps over which the cosine falls to 0; 0 is steps
    cfg.optim.warmup_steps = 100  # steps in which the learning rate rises from 0
    cfg.optim.b1 = 0.9  # Adam's
    cfg.optim.b2 = 0.95  # Adam's
    cfg.optim.eps = 1e-8  # Adam's
    cfg.optim.weight_decay = 0.1  # decoupled, as in AdamW
    cfg.optim.decay_mask = "matrices"  # what decays: all but norm scales and biases; or "all". Released code: all
    cfg.optim.clip_norm = 1.0  # maximum norm of the gradient
    cfg.optim.moments = "float32"  # Adam's, 8 bytes per parameter; "bfloat16" 4, "int8" and "factored" about 2
    cfg.optim.minibatches = 1  # optimizer updates per step; released code: 4
    cfg.optim.row_len = 0  # positions of a row that several sequences share (packing); 0: one sequence per row
    cfg.optim.shared_prompts = False  # rollouts in a packed row share their prompt; short rows, docs/update.md
    cfg.optim.microbatch = 0  # rows whose activations exist at once; 0 is all
    cfg.optim.remat = "block"  # kept for the backward pass: "none" (all), "dots", "attention" or "block" (least)
    cfg.optim.attention = "auto"  # kernel by platform; or "splash" (TPU), "cudnn" (GPU), "short", "xla", "naive"
    cfg.optim.logprob_chunk = 128  # positions of a row whose logits exist at once
    cfg.optim.xla_options = ""  # of the update's compiler, "xla_a=1 xla_tpu_b=2"; those of other platforms are ignored

    cfg.stream = ConfigDict()  # what overlaps with what; docs/streaming.md
    cfg.stream.groups = 0  # groups per portion of the gradient, summed while others are judged; 0: all at the end
    cfg.stream.deterministic = True  # sum in the order of the prompts, not of arrival: bitwise reproducible (on CPU)
    cfg.stream.staleness = 0  # 1: step t+1 is sampled, by the policy before step t, while step t is judged
    cfg.stream.straggler_timeout_s = 0.0  # of waiting, then slow groups move to the next step; 0: wait for all
    cfg.stream.cap = 2.0  # of the weights that correct for these two (loss.is_cap, if that is set)

    cfg.mesh = ConfigDict()
    cfg.mesh.fsdp = -1  # -1 takes the devices that are left by tp
    cfg.mesh.tp = 1  # number of devices that split the matrices of a layer
    cfg.mesh.update_fsdp = 0  # the update's own mesh, on the same devices; 0 is mesh.fsdp, -1 as there
    cfg.mesh.update_tp = 0  # 0 is mesh.tp
    cfg.mesh.sample_fsdp = 0  # the sampler's own mesh, likewise
    cfg.mesh.sample_tp = 0  # 0 is mesh.tp
    cfg.mesh.ep = 1  # of the update: number of devices that split the experts of each layer; docs/update.md
    cfg.mesh.cp = 1  # of the update: number of devices that split the tokens of each row, for long rows; docs/update.md

    cfg.checkpoint = ConfigDict()
    cfg.checkpoint.every = 50  # steps; the last step is always saved
    cfg.checkpoint.keep = 2  # the newest; the last step is always one of them
    cfg.checkpoint.keep_best = 0  # and this many with the best held-out result; docs/checkpoints.md
    cfg.checkpoint.best_by = "accuracy"  # greedy; or "sampled_accuracy", "judge", one of eval.benchmarks

    cfg.eval = ConfigDict()
    cfg.eval.every = 50  # steps; before the first and after the last step always
    cfg.eval.size = 0  # held-out prompts used in between; 0 is all
    cfg.eval.prompts_at_once = 64  # prompts whose answers decode at the same time
    cfg.eval.judged = 64  # the first this many held-out prompts are graded by teacher.judge
    cfg.eval.sampled = True  # in addition to greedy, one sample per prompt at the training temperature
    cfg.eval.benchmarks = ()  # names, ("aime_2024",): measured during the run as well; docs/evaluation.md
    cfg.eval.benchmarks_every = 0  # steps; before the first and after the last step always. 0 is eval.every
    cfg.eval.benchmarks_k = 4  # answers per problem, each of at most sampling.max_tokens. Released code: 8
    cfg.eval.benchmarks_limit = 0  # only the first problems of each; 0 is all
    cfg.eval.benchmarks_data = ""  # a directory with their rows, or "hub"; "" is ROPD_DATA

    cfg.log = ConfigDict()
    cfg.log.groups = True  # write every step's groups, as JSONL
    cfg.log.token_logprobs = "on"  # of the rollouts, next to the groups; "off", or "before_after": docs/viewer.md
    cfg.log.trackers = ("tensorboard",)  # where metrics are sent: "tensorboard", "wandb", "mlflow"; docs/viewer.md
    cfg.log.profile_steps = ""  # "3:5": JAX profiles steps 3 and 4 into RUN/profile; "" never
    cfg.log.watchdog_s = 900.0  # after this time without progress, all stacks are written to a file; 0 never
    return cfg


def _role(*, temperature: float, max_output_tokens: int) -> ConfigDict:
    role = ConfigDict()
    role.provider = ""  # "" is the teacher's
    role.base_url = ""  # "" is the teacher's
    role.api_key_env = ""  # "" is the teacher's
    role.headers = ConfigDict()  # empty: those of the teacher
    role.model = "scripted"  # the provider's name of the model
    role.template = ""  # a prompt of teacher/roles/prompts, or the path of your own .md file; "" is the role's newest
    role.temperature = temperature  # None: the provider's default
    role.max_output_tokens = max_output_tokens  # limit of a reply, including thinking
    role.extra = ConfigDict()  # added to the request: {"reasoning_effort": "high"}, {"top_p": 0.95}; docs/providers.md
    return role


# ------------------------------------------------------------------------------------------------ reading a file


def load_config(file: str | os.PathLike[str], **overrides: Any) -> ConfigDict:
    """A config that comes with the package, or of your own Python file, with a few keys changed; locked.

        load_config("quickstart", steps=3, optim__lr=1e-3)
        load_config("mini:method=sft", **{"optim.lr": 1e-3})
        load_config("my/config.py")

    Args:
        file: the name of a config that comes with the package (``ropd configs`` lists them), or the path of a Python
            file that defines ``get_config()``; it ends in ``.py``. ``NAME:arg`` and ``FILE.py:arg`` call
            ``get_config(arg)``.
        overrides: values by key; ``__`` in a name stands for the dot of a section.

    Raises:
        UserError: no such name or file (with similar names), no ``get_config``, an error in the file (with its line),
            an unknown or renamed key (with similar ones), or a value of the wrong type.
    """
    spec = os.fspath(file)
    place, arg = shipped.split(spec, "get_config", "config")
    path = only_local(place, "config file")
    try:
        module = load_user_module(path, what="config file")
        get_config = _get_config(module, path, arg)
        with user_code(path):
            config = get_config() if arg is None else get_config(arg)
    except UserError as error:
        if (explained := _explained(str(error))) == str(error):
            raise
        raise UserError(explained) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned a {type(config).__name__}; expected an ml_collections.ConfigDict")
    known = list(leaves(default()))
    for key in leaves(config):
        # A section that is empty in default() accepts any keys: data.options, teacher.references_from.
        if key not in known and not any(key.startswith(f"{k}.") for k in known):
            raise UserError(f"{spec} sets {key}, which is not a key of a config; {hint(key, known)}")
    for key, value in overrides.items():
        change(config, key.replace("__", "."), value)
    return config.lock()


def change(config: ConfigDict, key: str, value: Any) -> None:
    """Sets one key, e.g. ``optim.lr``; the type of the key stays.

    Raises:
        UserError: an unknown or renamed key, a whole section, or a value of another type.
    """
    check_key(config, key, key)
    section, _, last = key.rpartition(".")
    target = lookup(config, section) if section else config
    now = target[last]
    try:
        if isinstance(now, ConfigDict):  # a section that accepts any keys; the new ones replace all others
            target[last] = ConfigDict(dict(value))
        else:
            target[last] = value
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{key}={value!r}: expected {kind(now)} ({key} is {now!r} in the file)") from error


def check_key(config: ConfigDict, key: str, shown: str) -> None:
    """Rejects a key that the config does not have, and a section that is not empty; ``shown`` is the key as written."""
    known, own = list(leaves(config)), default()
    free = [k for k in leaves(own) if isinstance(lookup(own, k), ConfigDict)]  # sections that accept any keys
    if key in known or key in free:
        return
    section, _, last = key.rpartition(".")
    if section in free:
        raise UserError(f"{shown} is a key of a section that accepts any keys; write {section}=\"{{'{last}': VALUE}}\"")
    section = lookup(config, key)
    if isinstance(section, ConfigDict):
        raise UserError(f"{shown} is a section; expected one of its keys: {', '.join(section)}")
    raise UserError(f"the config has no key {key!r}; {hint(key, known)}")


def hint(key: str, known: list[str]) -> str:
    """What to write in place of an unknown key: its new name, the same word in another section, or a similar name."""
    if key in RENAMED:
        return f"it was renamed: write {RENAMED[key]}"
    tail = key.rpartition(".")[2]
    same_tail = [k for k in known if k.rpartition(".")[2] == tail]
    return f"did you mean {' or '.join(same_tail[:3])}?" if same_tail else near(key, known)


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Every key, ``optim.lr``; an empty section counts as a key."""
    for key, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def lookup(config: Any, path: str) -> Any:
    """The value of a dotted key; None if there is no such key."""
    for part in path.split("."):
        if not hasattr(config, "keys") or part not in config:
            return None
        config = config[part]
    return config


def kind(value: Any) -> str:
    """The type of a value as text, for messages."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "a tuple, (1, 2)"}
    return names.get(type(value), f"a {type(value).__name__}")


def _get_config(module: types.ModuleType, path: pathlib.Path, arg: str | None) -> Any:
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"{path} has no get_config(); expected a function that starts from ropd_jax.configs.default()")
    parameters = inspect.signature(module.get_config).parameters.values()
    if arg is not None and not parameters:
        raise UserError(f"{path}: get_config() takes no argument, but {arg!r} was given; leave out :{arg}")
    if arg is None and any(p.default is p.empty for p in parameters):
        raise UserError(f"{path}: get_config(arg) needs an argument; write {path}:ARG")
    return module.get_config


def _explained(message: str) -> str:
    """ConfigDict's error about a key, rephrased: ``a.py:9: the config has no key 'optm'; ...``"""
    where = message.partition(": ")[0]
    if found := re.search(r'Did you mean "(\w+)" instead of "(\w+)"', message):
        key, remedy = found[2], f"did you mean {found[1]}?"
    elif found := re.search(r'Key "(\w+)" does not exist', message):
        key, remedy = found[1], "ropd configs --keys= lists all keys"
    else:
        return message
    renamed = [f"{old} was renamed: write {new}" for old, new in RENAMED.items() if old.rpartition(".")[2] == key]
    return f"{where}: the config has no key {key!r}; {renamed[0] if renamed else remedy}"


# ---------------------------------------------------------------------------------------- the paper's two columns


def choose(arg: str, *choices: tuple[str, ...]) -> tuple[str, ...]:
    """The choices in ``FILE:arg``: words separated by commas, at most one per tuple; the default is a tuple's first.

    Raises:
        UserError: a word that is in no tuple, or two of the same tuple.
    """
    words = [w for w in arg.split(",") if w]
    for word in words:
        if not any(word in options for options in choices):
            known = ", ".join(w for options in choices for w in options)
            raise UserError(f"variant {word!r} is unknown; {near(word, known.split(', '))} (separated by commas)")
    found = [[w for w in words if w in options] for options in choices]
    for several, options in zip(found, choices, strict=True):
        if len(several) > 1:
            raise UserError(f"variant {arg!r} names {' and '.join(several)}; expected one of {', '.join(options)}")
    return tuple(w[0] if w else options[0] for w, options in zip(found, choices, strict=True))


COLUMNS: dict[str, dict[str, Any]] = {  # column -> keys that differ from `default` and from what `paper_run` sets
    "paper": {},  # arXiv 2605.07396, Table A2
    "released": {  # the official code's configuration; exceptions: docs/reproduce.md
        "steps": 500,
        "checkpoint.every": 100,
        "loss.normalize_std": False,
        "loss.aggregation": "token_mean",
        "loss.dual_clip": 3.0,
        "loss.is_cap": 2.0,
        "loss.is_clip": True,
        "optim.schedule": "constant",
        "optim.warmup_steps": 0,
        "optim.b2": 0.999,
        "optim.weight_decay": 0.01,
        "optim.decay_mask": "all",  # verl passes all parameters to torch's AdamW
        "optim.minibatches": 4,
    },
}


def paper_run(column: str) -> ConfigDict:
    """Settings of all runs of the paper: black-box teacher GPT-5.2, 32 prompts x 8 rollouts, on an accelerator.

    Args:
        column: ``paper`` (Table A2) or ``released`` (the official code's configuration), one of `COLUMNS`.

    Raises:
        UserError: another column.
    """
    if column not in COLUMNS:
        raise UserError(f"column {column!r} is unknown; {near(column, list(COLUMNS))}")
    cfg = default()
    cfg.student.dtype = "bfloat16"
    cfg.data.source = "jsonl"
    cfg.data.size = 20_000
    cfg.teacher.provider = "openai"
    roles = (cfg.teacher.reference, cfg.teacher.rubricator, cfg.teacher.verifier, cfg.teacher.scorer)
    for role in roles:
        role.model = "gpt-5.2-chat-latest"
    cfg.teacher.reference.temperature = 0.0  # Table A2; then the four references can be identical: 0.7 avoids it
    cfg.optim.row_len = 10_240  # packed rows; a prompt of 2,048 and an answer of 8,192 tokens just fit
    cfg.optim.microbatch = 1  # a row for each device
    cfg.stream.groups = 4  # sum while the teacher reads; not with the released code's 4 mini-batches
    cfg.stream.deterministic = False
    cfg.optim.xla_options = "xla_tpu_scheduler_percent_shared_memory_limit=50"  # 100: all memory, for overlap
    cfg.mesh.tp = 4  # decoding gathers a quarter of the weights: 2 GB per chip, on a slice of any size
    cfg.mesh.update_fsdp, cfg.mesh.update_tp = -1, 1  # and the update moves a third of the bytes with tp=4
    cfg.sampling.prompts_at_once = 16  # 128 rollouts side by side: 11 GB of keys and values on each of 16 chips
    cfg.eval.size = 100
    cfg.eval.sampled = False
    cfg.update_from_flattened_dict(COLUMNS[column])
    if column == "released":
        for role in roles:
            role.temperature = None  # the provider's own
            role.extra = {"reasoning_effort": "high"}  # models that reject it get requests without it, and a log line
    return cfg
