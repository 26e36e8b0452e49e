"""The making wing: from a SavedModel on disk to a bundle on disk.

``pipeline`` lists its stages; every stage is a module.
"""
