"""Remedies that regularize more or less, augmentation and capacity among them."""
