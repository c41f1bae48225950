"""The model store: manifests, verified downloads, content-addressed blobs."""
