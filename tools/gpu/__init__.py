"""What only a machine with a GPU can measure; one script a question. Everything but the engines runs anywhere."""
