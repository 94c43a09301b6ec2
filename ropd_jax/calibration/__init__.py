"""Measures how far a verifier can be trusted, on labelled answers, before it gives rewards.

    labels.py      the package's labelled set, made by generate.py and families/, or the user's own
    run.py         calls the verifier (and the scorer)           labels -> verdicts
    probes.py      what wrong answers gain by appearance         labels -> twins; verdicts -> gains
    measure.py     agreement.py, bias.py, bootstrap.py           verdicts -> figures with intervals
    report.py      JSON, Markdown and tables, with the recommendation from advice.py

Imports no jax. The command is ``ropd calibrate-judge``; the documentation is docs/judge.md.
"""
