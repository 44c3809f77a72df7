"""One run on several processes, its ranks: data parallel, with the gradient engine, or with a sharded model.

Every rank runs the same course (zslx/training/course.py) on the same batches, and makes losses and gradients of its own
sequences. What a method sees is of the whole batch. Rank 0 alone touches the run folder.

    group.py      the ranks, which sequences are whose, and the few collectives
    gradient.py   the gradient of a step
    engine.py     the gradient engine's statistics of the whole batch
    measuring.py  held-out losses and gradient interference
    sharding.py   a model whose parameters are spread over the ranks (FSDP2)
    run.py        a run on ranks: who writes, who resumes
    train.py      the call that trains it, in every rank
    launch.py     ranks as processes of this machine, without torchrun
"""
