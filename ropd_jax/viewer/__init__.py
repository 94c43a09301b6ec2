"""Looking at a run: ``ropd show`` in the terminal, ``ropd view`` in a browser. Reads only; imports no jax.

summary.py    one stored group in short: rewards, and notable properties
index.py      the position of each group in its file, so that a group is opened without the others
calls.py      the requests to the teacher about one group, from the run's tape
tokens.py     the log-probabilities of one group's tokens
terminal.py   the matrix of criteria and answers for a terminal
runs.py       the data about one run; overview.py: several runs next to each other
criteria.py   clusters of criteria, computed in the background (`analysis.criteria`)
reports.py    results of other commands: benchmarks, calibrations, second judgements
server.py     all of it over HTTP, with the page in static/
"""
