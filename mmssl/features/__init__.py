"""Item features from texts and pictures, stored in ``NAME_feat.npy`` with one row per item.

``text_features`` and ``relation_features`` compute arrays. ``extract_text`` and ``extract_images``
write the feature file of a data set, a mask of items without content, and a record of the encoder.
"""

from mmssl.features.image import Extracted, ImageEncoder, extract_images
from mmssl.features.output import Output, Written
from mmssl.features.pictures import Preprocess
from mmssl.features.text import TextEncoder, extract_text
from mmssl.features.tfidf import TfidfEncoder, relation_features, text_features

__all__ = [
    "Extracted",
    "ImageEncoder",
    "Output",
    "Preprocess",
    "TextEncoder",
    "TfidfEncoder",
    "Written",
    "extract_images",
    "extract_text",
    "relation_features",
    "text_features",
]
