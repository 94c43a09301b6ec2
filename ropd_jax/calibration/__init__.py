"""How far a verifier can be trusted: labelled verdicts go through the run's own verifier before it gives rewards.

    labels.py      the labelled set of the package, made by generate.py and families/; or the user's own
    run.py         asks the verifier (and the scorer)            labels -> what was said
    probes.py      what wrong answers gain by looks              labels -> twins; what was said -> gains
    measure.py     agreement.py, bias.py, bootstrap.py           what was said -> figures with intervals
    report.py      JSON, Markdown and tables; advice.py writes the recommendation

Imports no jax. ``ropd calibrate-judge`` is its command, docs/judge.md its page.
"""
