"""Tables, plots and pages: values in, files out."""
