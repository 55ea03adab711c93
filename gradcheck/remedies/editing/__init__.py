"""Remedies as edits of the user's source: exact spans, re-parsed, shown as a diff, written atomically.

document   a file's bytes, encoding and newlines
draft      a file under edit: places are followed through the edits, each one is checked
nodes, statements, imports   edits of calls, of statements, of imports
context    what a writer works with
plan       several fixes into the same files
write      replacing the files
"""
