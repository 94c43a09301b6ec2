#!/usr/bin/env bash
# Runs a command again until it is done: the same `ropd train` resumes from its last checkpoint.
#
#   launch/until_done.sh ropd train --config my.py --workdir gs://bucket/runs/a
#
# By exit code (docs/launch.md):
#   0            done
#   2 3 4 6      a person has to look: config, teacher, budget, NaN. Not repeated.
#   all others   preempted (130, 143, 137), another host lost (5), a crash (1): repeated, at most ROPD_RESTARTS times.
# SIGTERM and Ctrl-C reach the command once, as SIGTERM, and end the loop after it.
set -u
set -m # a process group of its own: a terminal's Ctrl-C would reach the run too, and a second signal stops it unsaved

restarts=${ROPD_RESTARTS:-100}
pause_s=${ROPD_PAUSE_S:-10}
stop='' child=''
if [ $# -eq 0 ]; then
  echo 'usage: until_done.sh COMMAND [ARGUMENT ...]' >&2
  exit 2
fi

pass_on() {
  stop=yes
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap pass_on TERM INT

for ((tries = 0; ; tries++)); do
  "$@" &
  child=$!
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # a trap interrupted the wait; the command is still saving
    wait "$child"
    code=$?
  done
  child=''
  case $code in
    0 | 2 | 3 | 4 | 6) exit "$code" ;;
  esac
  [ -z "$stop" ] || exit "$code"
  if ((tries >= restarts)); then
    echo "until_done: exit code $code after $restarts restarts; giving up" >&2
    exit "$code"
  fi
  echo "until_done: exit code $code; restart $((tries + 1)) of $restarts in $pause_s s" >&2
  sleep "$pause_s" &
  wait $!
  [ -z "$stop" ] || exit "$code"
done
