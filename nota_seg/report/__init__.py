"""Runs beside each other: significance, the page and its plots, model cards. Stands on the files that runs leave."""
