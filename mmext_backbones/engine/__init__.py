"""What plugs into mmengine beside the models."""
