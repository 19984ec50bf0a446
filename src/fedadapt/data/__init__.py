"""Images on the parties that hold them: sources, partitions, augmentation, ragged client batches."""
