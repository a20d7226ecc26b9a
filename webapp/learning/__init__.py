"""What pages and API share about data sets and candidates: images, corrections, confirmed scans,
previews, and the figures of a shadow.
"""
