"""What all pages share: the frame, the style sheet, charts and their axes."""
