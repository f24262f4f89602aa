"""Variant `plus`: LightGCN with item graphs of the modalities and a softmax over the catalog.

Read in this order: ``task`` (what the trainer calls), ``model`` (the forward pass), ``loss`` (the
ranking losses), ``item_graph`` (nearest neighbors). docs/model.md has the equations.
"""
