"""Certified robustness: outputs bounded over all inputs near a sample, and training that keeps the bounds tight."""
