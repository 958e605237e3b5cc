"""Benchmarks: data sets of pairs, methods that register them, one way to measure, and the tables.

Data flow one way: a data set (:mod:`regkit.bench.datasets`) gives cases, the runner starts a process for each
case and method, the worker registers and measures, and adds one row to ``results.jsonl``; the report is made
of the rows alone.
"""
