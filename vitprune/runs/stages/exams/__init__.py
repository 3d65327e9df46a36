"""What the exam is made of beside the rows of classifiers: single images, and the exam of a backbone."""
