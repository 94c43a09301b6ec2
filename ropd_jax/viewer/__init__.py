"""Looking at a run: ``ropd show`` in the terminal, ``ropd view`` in a browser. Reads only; imports no jax.

summary.py    one stored group in short: rewards, and what makes it worth a look
index.py      where each group lies in its file, so that one is opened without the others
terminal.py   the matrix of criteria and answers for a terminal
"""
