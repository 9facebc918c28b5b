"""What every part needs and nothing of OpenMMLab's models: errors, messages, files, the console."""
