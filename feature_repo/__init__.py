"""Columns: the Feast repository of freshrank and its store plug-ins."""
