"""Annotations, images, and the record files made of them."""
