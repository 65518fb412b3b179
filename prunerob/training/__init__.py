"""Training: the Classifier, its phases and objectives, and what is saved and shown of them."""
