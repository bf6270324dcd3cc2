"""Large models: trained on whatever processors are there, planned for those that are not.

A model is a decoder over one stream of tokens, of text, pictures, series and tables; what is minimised is the mean
cross-entropy of the next token (or of a class, or a squared error), by AdamW, Muon or Adafactor. A step is one program for all
devices, in which every collective is written out, so what travels can be counted before anything runs.

Symbols: B rows, T tokens of a row, D width, L layers, H heads, K key heads, G = H / K, C width of a head, F inner width of the
MLP, E experts, V vocabulary. Axes of the mesh: pp, dp, fsdp, ep, cp, tp.

Read in this order:
    config, spec       what a model is; its parameters, by name and by axis
    mesh               the axes of devices and the collectives
    layers, attention, loss, moe, encoders, model    what one device computes of it
    precision, optim, step    gradients of the whole, and what becomes of them
    pipeline           layers on stages
    samples, material, fit, record, baseline, engine    from a job to batches, the loop, and what is reported
    checkpoint, keeper, elastic, member    what is kept of a run, and how processes that are lost are replaced
    generate, eval, hub       what to do with a trained model
    walk, hlo, plan, project, machines     what a step costs, and what it would cost elsewhere

From Python, without an engine:
    >>> from gewu.train.step import Trainer  # doctest: +SKIP
    >>> trainer = Trainer(ModelConfig(vocab=256), Layout.of("fsdp=2 tp=2"), Optimiser(), Precision.of("bf16"))  # doctest: +SKIP
    >>> state, metrics = trainer.step(trainer.init(seed=1), trainer.prepare(batch))  # doctest: +SKIP
"""
