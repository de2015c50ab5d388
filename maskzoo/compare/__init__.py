"""Several recipes over several seeds: planned, trained where missing, and reported on.

The report reads json and toml alone, so that it needs neither torch nor the plugins that the runs had.
"""
