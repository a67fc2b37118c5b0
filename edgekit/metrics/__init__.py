"""Accuracy: labelled data, decoding of heads, suppression, detection mAP, classification top-k."""
