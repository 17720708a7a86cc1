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
}
