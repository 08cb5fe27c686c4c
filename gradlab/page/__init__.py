"""The pages: results read from disk go in, files that need neither server nor network come out.

Nothing is computed here. No experiment is known by name: one that has something to show in the
lesson offers it (`gl.lesson`), and a file that offers nothing is read but not executed. Text from
experiments and configurations is escaped, by jinja2, everywhere.
"""
