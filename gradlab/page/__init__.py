"""The pages: results read from disk go in, files that need neither server nor network come out.

Nothing is computed here and no experiment is executed; what a page shows was saved by a run. Text
from experiments and configurations is escaped, by jinja2, everywhere.
"""
