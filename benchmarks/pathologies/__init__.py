"""Each pathology planted, detected, mended, and measured again; beside it its clean twins.

    make pathologies

The sweep writes `benchmarks/results/pathologies.json`; `page` makes the page and the figure of it.
"""
