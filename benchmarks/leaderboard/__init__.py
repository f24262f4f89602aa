"""Every model of the registry on every data set, under one protocol: docs/leaderboard.md.

Read in this order: ``entries`` (models and ablations), ``cell`` (tuning and seeds of one model on
one data set), ``score`` (the test split), ``records`` (the files), ``board`` (means and tests),
``report`` (tables and picture).
"""
