#!/usr/bin/env bash
# Trains on a spot TPU slice from the queue, and asks for another one each time it is taken away, until the run is done.
# Runs on your own machine (in tmux) or on a small VM; needs gcloud.
#
#   PROJECT=p ZONE=us-west4-a ACCELERATOR=v5litepod-16 launch/tpu_queued.sh my-run \
#       --config qwen3_4b_math --workdir gs://bucket/runs/a
#
# Start it in a clone, or in a directory that `ropd init` wrote. Every worker gets the current directory: the committed
# files of a git repository; elsewhere all files, except runs/ and names that begin with a dot.
#
#   ROPD_PACKAGE  what pip installs on the workers, with the extras. In a clone the default is '.[tpu,gcs]'. Elsewhere
#                 set a wheel ('dist/ropd_jax-0.2.0-py3-none-any.whl[tpu,gcs]', which is sent too),
#                 'ropd_jax[tpu,gcs]==0.2.0', or 'ropd_jax[tpu,gcs] @ git+https://HOST/OWNER/ropd_jax@v0.2.0'
#   ROPD_SETUP    a command that each worker runs first, e.g. 'sudo apt-get install -y python3.11-venv'. The workers
#                 need Python 3.11 or newer
#   ROPD_KEYS     the variables to pass on ("OPENAI_API_KEY"), in a file that is read once and removed. They are never
#                 on a command line
#
# The workdir must be in a bucket: the disks of a slice go with it. Exit codes 2, 3, 4 and 6 need a person
# (docs/launch.md) and end the loop; so does a package that cannot be installed. The slice is deleted at the end; Ctrl-C
# saves a checkpoint first.
set -u

name=${1:?usage: PROJECT= ZONE= ACCELERATOR= tpu_queued.sh NAME --config FILE --workdir gs://BUCKET/DIR ...}
shift
: "${PROJECT:?}" "${ZONE:?}" "${ACCELERATOR:?}"
runtime=${RUNTIME:-v2-alpha-tpuv5-lite}
poll_s=${ROPD_POLL_S:-30}
restarts=${ROPD_RESTARTS:-100}
read -ra tier <<<"${TIER---spot}" # TIER= takes a slice that is not preempted
case " $* " in
  *' --workdir gs://'* | *' --workdir=gs://'*) ;;
  *) echo 'tpu_queued: --workdir must be gs://BUCKET/DIR; the disks of a slice go with it' >&2 && exit 2 ;;
esac

say() { echo "tpu_queued: $*" >&2; }
queue() {
  local action=$1
  shift
  gcloud compute tpus queued-resources "$action" "$name" --project "$PROJECT" --zone "$ZONE" --quiet "$@"
}
on() { # on WORKER COMMAND: over ssh
  gcloud compute tpus tpu-vm ssh "$name" --project "$PROJECT" --zone "$ZONE" --quiet --worker "$1" --command "$2" </dev/null
}
to_all() { # to_all FILE: into the home directory of every worker
  gcloud compute tpus tpu-vm scp "$1" "$name:" --project "$PROJECT" --zone "$ZONE" --quiet --worker all
}
state() { # ABSENT if there is no such request, UNKNOWN if Google does not answer
  local found
  if found=$(gcloud compute tpus queued-resources list --project "$PROJECT" --zone "$ZONE" \
    --filter "name~/$name\$" --format 'value(state.state)' 2>/dev/null); then
    echo "${found:-ABSENT}"
  else
    echo UNKNOWN
  fi
}

give_back() {
  say "deleting $name"
  until [ "$(state)" = ABSENT ]; do
    queue delete --force >/dev/null 2>&1
    sleep "$poll_s"
  done
}
umask 077
parcel=$(mktemp -d)
trap 'rm -rf "$parcel"' EXIT
if [ -z "${ROPD_PACKAGE:-}" ] && ! grep -qs 'name="ropd_jax"' setup.py; then
  echo 'tpu_queued: this directory is not a clone of ropd_jax; set ROPD_PACKAGE to what pip installs, such as' \
    "'ropd_jax-0.2.0-py3-none-any.whl[tpu,gcs]'" >&2 && exit 2
fi
package=${ROPD_PACKAGE:-.[tpu,gcs]}
wheel=${package%%[[]*}
if [ -f "$wheel" ]; then
  package=./$(basename "$wheel")${package#"$wheel"}
else
  wheel=''
fi
if git rev-parse --quiet --verify HEAD >/dev/null 2>&1; then
  git archive --format tar.gz ${wheel:+"--add-file=$wheel"} --output "$parcel/ropd.tar.gz" HEAD || exit 2
else
  tar czf "$parcel/ropd.tar.gz" --exclude='./.*' --exclude=./runs --exclude=__pycache__ . \
    ${wheel:+-C "$(dirname "$wheel")" "$(basename "$wheel")"} || exit 2
fi
for key in ${ROPD_KEYS:-}; do
  [ -n "${!key:-}" ] || { echo "tpu_queued: ROPD_KEYS names $key, which is not set; export it first" >&2 && exit 2; }
  printf '%s=%q\n' "$key" "${!key}"
done >"$parcel/ropd.keys"
trap 'say "stopping the run"; on all "$finish"; give_back; exit 130' INT TERM

# shellcheck disable=SC2016 # the worker expands it
install=$(printf 'package=%q setup=%q pause_s=%q' "$package" "${ROPD_SETUP:-true}" "$poll_s")'
umask 077
rm -rf ropd ropd.exit && mkdir ropd && tar xzf ropd.tar.gz -C ropd && cd ropd || exit
if [ -f constraints.txt ]; then export PIP_CONSTRAINT="$PWD/constraints.txt"; fi
for _ in 1 2 3; do
  (
    eval "$setup" || exit
    python=$(command -v python3.13 python3.12 python3.11 | head -n 1)
    "${python:?no Python 3.11 or newer on this worker; install it with ROPD_SETUP}" -m venv .venv &&
      .venv/bin/pip install --quiet "$package"
  ) && exit
  sleep "$pause_s"
done
echo 2 > ../ropd.exit
exit 1'
# The run is detached, so that a lost ssh connection does not end it; ropd.exit appears when it has ended.
train="set -a && . ./ropd.keys && set +a && rm ropd.keys && cd ropd &&
  (setsid nohup sh -c 'echo \$\$ > ../ropd.pid; .venv/bin/ropd train \"\$@\"; echo \$? > ../ropd.exit' ropd$(printf ' %q' "$@") \
  > ../ropd.log 2>&1 < /dev/null &)"
# shellcheck disable=SC2016 # the worker expands it
finish='kill -TERM -- "-$(cat ropd.pid)" 2>/dev/null
  for _ in $(seq 60); do kill -0 -- "-$(cat ropd.pid)" 2>/dev/null || break; sleep 1; done'

start() {
  to_all "$parcel/ropd.tar.gz" && to_all "$parcel/ropd.keys" && on all "$install" && on all "$train"
}

for ((tries = 0; tries <= restarts; tries++)); do
  until [ "$(state)" = ACTIVE ]; do
    case $(state) in
      ABSENT)
        say "queueing $ACCELERATOR in $ZONE"
        queue create --node-id "$name" --accelerator-type "$ACCELERATOR" --runtime-version "$runtime" "${tier[@]}" ||
          say 'the request was refused; trying again'
        ;;
      FAILED | SUSPENDED | SUSPENDING) give_back ;;
    esac
    sleep "$poll_s"
  done
  say "$name is there; starting the run"
  code=''
  if start; then
    until [ -n "$code" ] || [[ $(state) != @(ACTIVE|UNKNOWN) ]]; do
      sleep "$poll_s"
      code=$(on 0 'cat ropd.exit 2>/dev/null' 2>/dev/null)
    done
  else
    code=$(on 0 'cat ropd.exit 2>/dev/null' 2>/dev/null)
  fi
  case ${code:-taken} in
    0 | 2 | 3 | 4 | 6)
      say "exit code $code"
      give_back
      exit "$code"
      ;;
  esac
  say "the run ended early (${code:-the slice was taken away}); restart $((tries + 1)) of $restarts"
  give_back
done
say "$restarts restarts; giving up"
exit 1
