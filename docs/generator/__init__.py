"""The pages of the site that are made from the code: ``python -m docs.generator``, which ``make docs`` runs first.

    tree.py        copies docs/ to build/docs, adds the pages below, and rewrites links that leave docs/
    keys.py        every key of a config, from `ropd_jax.configs` and `ropd_jax.workdir.keys`
    commands.py    every command, from the flags of `ropd_jax.cli`
    metrics.py     every metric
    files.py       every file of a run's directory
    api.py         the public names, as directives for mkdocstrings
    lab_log.py     experiments/README.md: an index, and the entries by month
    benchmarks.py  the benchmarks of the Makefile
    example.py     one group of a stored run, as tables
    sources.py     the files of the repository that a page links to
    markdown.py    Markdown from docstrings and rows

Only Markdown is written, so that any generator of sites that reads ``mkdocs.yml`` can build it. `hooks.py` lets
``mkdocs serve`` write it again when a source has changed.
"""
