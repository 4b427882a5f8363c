"""``report.py``: from run folders to one page: curves, tables and error bars over seeds.

``runs`` reads folders, ``comparable`` keeps apart what cannot be compared, ``arms`` says which runs repeat one another
with other seeds, ``intervals`` and ``curves`` hold the statistics, ``outcomes``, ``budgets`` and, for scores of
fine-tuning, ``evaluation`` apply them. What they find becomes a ``document`` of blocks (``sections``, with ``tables``
and ``figures``), which ``html``, ``markdown`` and the terminal render. Nothing here imports torch.
"""
