"""Comparisons: plan, runs, store, search for settings, budgets."""
