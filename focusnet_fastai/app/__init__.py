"What a person starts: demo, figures, report, training on photographs, commands."
