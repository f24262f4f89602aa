"""The MMSSL recommender, one concept per file.

Read in this order: ``task`` (what the trainer calls), ``step`` (critic, recommender, structure),
``model`` and ``attention`` (the forward pass), ``rows`` and ``critic`` (the adversarial task),
``structure`` (the modality graphs), ``loss``.

Source: Wei, Huang, Xia, Zhang: "Multi-Modal Self-Supervised Learning for Recommendation",
WWW 2023, arXiv 2302.10632.
"""
