"""Reports: what a run found, for readers of the thesis.

Read `figures` and `latex` first (pictures, tables and numbers of the thesis), then `answers` (RQ1 to RQ3 in sentences)
and `checklists` (what guidelines ask for). `pages` turns notebooks into HTML, `publish` hands a run's figures to git,
`readers` reports the reader study, `widgets` are for looking and clicking in Jupyter. `templates/` holds what pages and
documents are made from. No number is computed here: rooms of science give tables.
"""
