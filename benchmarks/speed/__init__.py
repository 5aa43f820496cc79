"""How fast palate trains and scores, against TRL and `transformers`, in one interleaved run.

    make bench

`cases` says what is compared, `run` drives a worker in each of two environments (`ours`, `peer`),
`curves` proves that both compute the same, `table` and `figure` draw the results.
"""
