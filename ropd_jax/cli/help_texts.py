"""What ``ropd --help`` and ``ropd VERB --help`` say."""

from __future__ import annotations

HELP = """\
usage: ropd VERB [flags]

Rubric-based on-policy distillation: a student (JAX) learns from a teacher that is only text.
For each question the student samples a group of answers, the teacher writes references and a rubric of weighted
yes/no criteria from the contrast, checks every answer against it, and the weighted pass rate is the reward.

verbs
  train           run the loop: prompts, rollouts, rubric, verdicts, rewards, update, checkpoint, evaluation
  data            which published sets are at hand, whether they are whole, and TFDS files of them
  eval            sample a student's answers to a benchmark (AIME, GSM8K, IFEval, ...) and grade them
  grade           grade stored answers to a benchmark (AIME, GPQA, HealthBench, IFEval, ...), without a model
  table           a table of the paper from finished runs, its numbers beside ours, and what is missing
  analyze         whether a run's rewards point where correctness does: AUC, bad updates, criteria over training
  timeline        what a run did when, as a Gantt chart, and in one line what it waits for
  rejudge         score the stored rollouts of a run again with another verifier, prompt or rubric; show what changes
  teach           ask for the references of all training prompts ahead of time
  plan            memory, collectives and seconds of a run on a TPU slice, from the compiler; no TPU is needed
  export          write a run's student as a Hugging Face directory that transformers and vLLM load
  preflight       calls, tokens, dollars and hours of a run before anything is spent; checks keys and models
  tape            look at the recorded answers of the teacher, export and import them
  serve-teacher   put the scripted teacher behind HTTP (OpenAI and Gemini wire formats)

start here
  ropd train --config experiments/quickstart.py --workdir runs/quickstart      a minute or two on 2 CPU cores
  less runs/quickstart/groups/step_000000.jsonl                                why each answer got its reward
  open runs/quickstart/curves.png                                              reward, accuracy, length, entropy

change a setting (every key stands in ropd_jax/configs.py)
  ropd train --config experiments/quickstart.py --workdir runs/b --config.seed=1

ropd VERB --help explains a verb.
"""

TRAIN_HELP = """\
usage: ropd train --config FILE[:arg] --workdir DIR [--config.a.b=value ...]

  --config FILE[:arg]   a Python file with get_config() -> ConfigDict; arg is handed to get_config(arg)
  --workdir DIR         where the run lives: checkpoints, metrics.jsonl, timeline.jsonl, tensorboard/, groups/,
                        curves.png, result.json
  --config.a.b=value    overrides one key; it keeps the type it has in the file

Started again with the same DIR, a run goes on from its last checkpoint; a finished one shows its result. A DIR that
belongs to another config is refused, and the difference is shown. Ctrl-C saves and says how to go on; a second
Ctrl-C leaves at once.

Several hosts (docs/hosts.md): the same command on each, with a DIR that all of them share. On TPU VMs they find each
other; elsewhere
  --coordinator HOST:PORT   of host 0 (or JAX_COORDINATOR_ADDRESS); auto: Slurm, Open MPI; off: this host alone
  --num-processes N         how many hosts (or JAX_NUM_PROCESSES)
  --process-id I            which one this is, 0 to N-1 (or JAX_PROCESS_ID)
Ctrl-C or SIGTERM on one of them saves and stops all.

Keys of paid teachers come from the environment (OPENAI_API_KEY, GEMINI_API_KEY), never from a config.

  ropd train --config experiments/quickstart.py --workdir runs/quickstart
  ropd train --config experiments/quickstart.py --workdir runs/seed1 --config.seed=1
"""

DATA_HELP = """\
usage: ropd data [SET] [--data DIR|tfds:DIR|hub] [--prepare DIR] [--language en|zh|all]

Without SET: the published sets by name, their rows and licences, and which are at the place. With SET: reads it, checks
rows and text against what is known, and counts what a training set drops (copies, other languages, questions with two
answers, questions of the benchmarks).

  --data PLACE     a directory with SET.jsonl; tfds:DIR, prepared by --prepare; hub (pip install datasets).
                   Default ROPD_DATA, else the Hub
  --prepare DIR    write the set as TFDS (array_record, no TensorFlow), to be read with --data tfds:DIR

A run trains on one of them with data.source="published", data.task=SET, data.path=PLACE; data.size and
data.heldout_size prompts are drawn from it by their seeds (0: all), never the same twice.

  ropd data dapo_math_17k --data ~/benchmarks --prepare ~/tfds
  ropd train --config my.py --config.data.source=published --config.data.task=dapo_math_17k \\
      --config.data.path=tfds:~/tfds --config.data.size=0 --config.data.heldout_size=200 --workdir runs/dapo
"""

EVAL_HELP = """\
usage: ropd eval RUN|CHECKPOINT --benchmark B [--k N] [--max_tokens N] [--limit N] [--data DIR] [--out DIR] ...

Samples k answers to each problem, writes them to OUT/answers.jsonl as they come, grades them (ropd grade) and shows
avg@k, pass@j and maj@k with 95 % intervals over problems. Started again with the same OUT it goes on where it was.
Without flags it samples as the paper: k=16, temperature 1.0, top-p 0.95, at most 32,768 tokens.

  RUN|CHECKPOINT   a run's directory; or tiny, smollm2, a .gguf file, a Hugging Face directory
  --pick RULE      which checkpoint of a run: last, or heldout, the best on the run's own held-out set
  --benchmark B    see ropd grade --help
  --data DIR       a directory with BENCHMARK.jsonl; default ROPD_DATA, else the Hub
  --k N  --temperature X  --top_p X  --max_tokens N      in place of the benchmark's own
  --template TEXT  the user message around {question}, in place of the benchmark's own
  --limit N        the first N problems
  --rows N         sequences decoded side by side (64)
  --dtype T        compute and cache: the run's, or float32
  --thinking, --nothinking   of the chat template (Qwen3); default the run's, or the template's own
  --seed N         of the samples (0)
  --out DIR        default RUN/eval/BENCHMARK_stepN, or evals/CHECKPOINT/BENCHMARK
  --against FILE   the result.json of another student: the paired difference with its interval

  ropd eval runs/quickstart --k 4 --max_tokens 48 --limit 200 --template '{question}' \\
      --benchmark reasoning_gym:chain_sum,min_terms=4,max_terms=5,min_digits=1,max_digits=1
  ropd eval smollm2 --benchmark gsm8k --data ~/benchmarks --k 4 --max_tokens 256 --limit 200
"""

TABLE_HELP = """\
usage: ropd table FILE [--runs DIR] [--evals DIR] [--format markdown|csv|latex] [--costs [--topology S]] [--out FILE]

Collects the results of ropd eval into the table that FILE's get_table() describes: our value with its 95 % interval,
n, k and seeds, the paper's number beside it. A cell without a result says what is missing and the command that fills
it. Nothing is run.

  --runs DIR     where the rows' runs are (runs)
  --evals DIR    where ropd eval CHECKPOINT left its results (evals)
  --format F     markdown, csv or latex
  --costs        the teacher's calls and dollars, and the hours, behind each command to train: expected ones by another
                 seed's tape and steps; without one dollars at most, and hours at the least on a slice
  --topology S   that slice (v5e:4x4); nothing is compiled, ropd plan says more

  ropd table experiments/table1_blackbox.py
  ropd table experiments/table_quickstart.py --runs runs/lab --format csv --out mini.csv
"""

ANALYZE_HELP = """\
usage: ropd analyze RUN [--steps a:b] [--teacher CHECKPOINT [--top_k K] | --scores FILE] [--out DIR]

The paper's signal study on the rollouts stored in RUN/groups: how often a right answer is scored above a wrong one
(AUC, over all and within groups), how many rollouts are pushed the wrong way (bad updates), which criteria are met over
training, and how like the references the rollouts become. Right and wrong are the gold answer's.

  --steps a:b      steps a to b-1; a: and :b are open ends
  --teacher C      more signals from this checkpoint (its weights are loaded): the mean log-prob of each answer, and
                   how much of its K most likely next tokens is the student's (of the kept checkpoint nearest before)
  --top_k K        24, as in the paper; 0 leaves the overlap out
  --scores FILE    more signals, JSONL: {"step": 3, "prompt_id": "p", "sample": 0, "teacher_logprob": -0.4, ...}
  --out DIR        analysis.json and analysis.png go there (RUN/analysis)

  ropd analyze runs/quickstart
"""

GRADE_HELP = """\
usage: ropd grade --benchmark B --answers FILE [--data DIR] [--out FILE] [--against RESULT]

Grades stored answers, one JSON object a line: {"id": "...", "response": "..."}, k lines a problem; "finish_reason" is
read where it stands ("length" is a truncated answer). Shows avg@k, pass@j, maj@k with 95 % intervals over problems,
and how many answers are ungraded or truncated. No model is loaded.

benchmarks   aime_2024 aime_2025 hmmt_feb_2025 hmmt_nov_2025 math_500 gsm8k gpqa_diamond ifeval
             healthbench healthbench_hard healthbench_consensus reasoning_gym:TASK[,key=value,...]

  --data DIR         a directory with BENCHMARK.jsonl; default ROPD_DATA, else the Hub (pip install datasets)
  --out FILE         the result as JSON, each problem's value included
  --against RESULT   an earlier result: the paired difference with its interval
  --timeout_s S      of computing on one math answer (5); what takes longer is ungraded, never wrong
  --workers N        processes of the math grader; 0 is one for each core
  --config...        HealthBench is judged by a model: --config.teacher.provider, .verifier.model, .budget.usd, ...

  ropd grade --benchmark gsm8k --answers answers.jsonl --data ~/benchmarks --out gsm8k.json
  ropd grade --benchmark healthbench_hard --answers a.jsonl --out hard.json \\
      --config.teacher.provider=openai --config.teacher.verifier.model=gpt-4.1-2025-04-14
"""

REJUDGE_HELP = """\
usage: ropd rejudge RUN [--verifier MODEL] [--rubric stored|fresh] [--steps a:b] [--out FILE] [--config.teacher.a=b ...]

Scores the rollouts in RUN/groups/*.jsonl again, by the run's config with your changes, and shows what would have
changed: rewards, ranks, signs of advantages, agreement of the two verifiers (Cohen's kappa), criterion by criterion.
References and rubrics are the stored ones. Nothing is written into RUN.

  --verifier MODEL            another model; the same as --config.teacher.verifier.model=MODEL
  --rubric fresh              induce each rubric again (teacher.rubricator) in place of the stored one
  --steps a:b                 steps a to b-1; a: and :b are open ends
  --out FILE                  the whole comparison as JSON, each criterion included
  --config.teacher.KEY=VALUE  any key of the teacher; other keys change nothing here and are refused

  ropd rejudge runs/a --verifier gemini-2.5-pro --config.teacher.verifier.provider=gemini --steps 0:10
  ropd rejudge runs/a --config.teacher.verifier.template=my_verifier.md --out rejudged.json
"""

TEACH_HELP = """\
usage: ropd teach --config FILE[:arg] --out FILE [--batch] [--config.a.b=value ...]

Asks for teacher.references answers to each training prompt of the config and writes them to FILE, one line a prompt
(JSONL, the official ropd.teacher_index.v2). Started again with the same FILE it goes on where it was, also after a
kill. An answer equal to an earlier one of its prompt is asked for again, so many times and no more.

  --batch      through the batch API of OpenAI or Gemini: half the price, up to a day. The jobs are on the tape
               (FILE.teacher/tape.sqlite); a command that was stopped goes on polling the same jobs
  --poll_s S   seconds between two looks at the jobs (30)

A run takes its references from there, and asks for none:
  ropd teach --config experiments/quickstart.py --out references.jsonl
  ropd train --config experiments/quickstart.py --config.teacher.index=references.jsonl --workdir runs/b
"""

EXPORT_HELP = """\
usage: ropd export RUN --to DIR [--step N] [--dtype T] [--adapter]
       ropd export CHECKPOINT --to DIR [--dtype T]

Writes DIR as a Hugging Face directory: config.json, model.safetensors (above 5 GB in shards with an index), tokenizer,
chat template, generation_config.json. transformers and vLLM load it, and so does student.checkpoint of another run.
A DIR that is there and not empty is refused; a command that was stopped leaves no DIR.

  --to DIR      where
  --step N      the run's checkpoint after N steps; without it the newest
  --dtype T     float32, bfloat16 or float16. Without it a run's weights are written as they were trained, in float32,
                and a checkpoint's as it has them (a GGUF file's, dequantized, in float32)
  --adapter     of a run with student.lora.rank above 0 write the adapters alone, as PEFT does (adapter_config.json,
                adapter_model.safetensors). Without it they are merged into the weights

CHECKPOINT is whatever student.checkpoint can be: smollm2, a .gguf file, a Hugging Face directory.

  ropd export runs/quickstart --to exported/quickstart
  ropd export smollm2 --to exported/smollm2
"""

SERVE_HELP = """\
usage: ropd serve-teacher [--host ADDRESS] [--port N] [--answer_key FILE] [--fault_rate X] ...

Puts the scripted teacher behind HTTP: POST /v1/chat/completions (OpenAI) and
POST /v1beta/models/MODEL:generateContent (Gemini). It works solutions out by rule; it is not a language model.

  --host ADDRESS            default 127.0.0.1 (this machine alone)
  --port N                  default 8808; 0 takes a free one and says which
  --answer_key FILE               JSONL of {"question", "solution"}: worked solutions of word problems
  --latency_s S             seconds before each reply (0)
  --fault_rate X            share of replies that fail: 429, 503, broken JSON (0.0)
  --slip_rate X             share of references with an arithmetic slip (0.0)
  --wrong_verdict_rate X    share of verdicts turned round (0.0)

Use it from a run, in another terminal:
  ropd train --config experiments/quickstart.py --workdir runs/http \\
      --config.teacher.provider=openai --config.teacher.base_url=http://127.0.0.1:8808/v1
"""
