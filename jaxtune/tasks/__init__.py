"""Tasks: name -> class, loaded when an experiment asks for it."""

TASKS = {
    "text_classification": "jaxtune.tasks.text_classification:TextClassification",
    "image_classification": "jaxtune.tasks.image_classification:ImageClassification",
    "causal_lm": "jaxtune.tasks.causal_lm:CausalLM",
    "preference": "jaxtune.tasks.preference:Preference",
}
