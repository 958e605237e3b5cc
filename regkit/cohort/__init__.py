"""Cohorts: many pairs of images registered by one call, on one machine or many, and told in one report.

Each pair is the work of one function (:func:`regkit.cohort.pair_job.register_pair`), which processes here or
workers of a Dask cluster call.
"""
