"""Placeholder until the page is written."""
def write_page(config, work, results, units): pass
