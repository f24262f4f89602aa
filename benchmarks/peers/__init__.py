"""What the benchmarks compare with. Every other implementation is written or called here.

``model.py``, ``step.py`` and ``evaluation.py`` are the released code's arithmetic in plain PyTorch.
They are written from its description (docs/model.md, variant ``released``), not from its text: the
same products, the same dense rows, the same Python loops, nothing tuned for or against it. The
tests hold them to a recording of the released code and to this package.

``serve.py`` lists the peers of the light models; they also run in environments without mmssl.
"""
