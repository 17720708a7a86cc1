"""Model families: Hugging Face's `model_type` -> the family that serves it, loaded when asked for."""

FAMILIES = {
    "bert": "jaxtune.models.bert:Bert",
    "roberta": "jaxtune.models.bert:Roberta",
    "xlm-roberta": "jaxtune.models.bert:XlmRoberta",
    "distilbert": "jaxtune.models.bert:DistilBert",
    "electra": "jaxtune.models.bert:Electra",
    "vit": "jaxtune.models.vit:Vit",
    "deit": "jaxtune.models.vit:Deit",
    "resnet": "jaxtune.models.resnet:ResNet",
    "llama": "jaxtune.models.llama:Llama",
    "mistral": "jaxtune.models.llama:Mistral",
    "smollm3": "jaxtune.models.llama:SmolLm3",
    "olmo2": "jaxtune.models.llama:Olmo2",
    "qwen2": "jaxtune.models.qwen:Qwen2",
    "qwen3": "jaxtune.models.qwen:Qwen3",
    "qwen3_moe": "jaxtune.models.qwen:Qwen3Moe",
    "gemma": "jaxtune.models.gemma:Gemma",
    "gemma2": "jaxtune.models.gemma:Gemma2",
    "gemma3_text": "jaxtune.models.gemma:Gemma3Text",
    "phi3": "jaxtune.models.phi3:Phi3",
    "gpt2": "jaxtune.models.gpt2:Gpt2",
    "gpt_neox": "jaxtune.models.gpt_neox:GptNeoX",
}

ADAPTERS = {
    "lora": "jaxtune.models.adapters:Lora",
    "dora": "jaxtune.models.adapters:Dora",
    "ia3": "jaxtune.models.adapters:Ia3",
    "peft": "jaxtune.models.peft:Peft",
}
