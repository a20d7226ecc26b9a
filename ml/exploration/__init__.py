"""What a data set holds, and which shortcuts it offers."""
