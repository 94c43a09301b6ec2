"""How far a verifier can be trusted: labelled verdicts go through the run's own verifier before it gives rewards.

labels.py      the labelled set that ships with the package, made by generate.py and families/
run.py         asks the verifier (and the scorer)          labels  -> what was said
measure.py     accuracy, kappa, AUC, bias, halo, intervals  said    -> report
report.py      the report as JSON, Markdown and one recommendation
"""
