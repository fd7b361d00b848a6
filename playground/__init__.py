"""What a person touches: the page, the chat, and the leaves that training shares."""
