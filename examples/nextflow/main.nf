// Registers the CT of every subject to its MR, and collects the verdicts.
//   nextflow run main.nf --data study
// study/ holds SUBJECT/mr.nii.gz and SUBJECT/ct.nii.gz; results go to study/derivatives/regkit/SUBJECT/.

params.data = 'data'
params.out = "${params.data}/derivatives/regkit"
params.preset = 'default'

process register {
    tag "${subject}"
    cpus 2
    publishDir { "${params.out}/${subject}" }, mode: 'copy'

    input:
    tuple val(subject), path(fixed), path(moving)

    output:
    path 'warp.nii.gz'
    path 'moved.nii.gz'
    path 'report.html'
    path 'run.log'
    tuple val(subject), path('found.json'), emit: found

    script:
    """
    regkit register ${fixed} ${moving} -o warp.nii.gz --moved moved.nii.gz --report report.html \
        --preset ${params.preset} --threads ${task.cpus} --quiet --log run.log --json > found.json
    """
}

workflow {
    subjects = Channel.fromPath("${params.data}/*/mr.nii.gz").map { mr ->
        tuple(mr.parent.name, mr, mr.parent.resolve('ct.nii.gz'))
    }
    register(subjects)
    register.out.found
        .map { subject, found -> "${subject}\t${new groovy.json.JsonSlurper().parse(found.toFile()).verdict.level}\n" }
        .collectFile(name: 'verdicts.tsv', storeDir: params.out, sort: true)
}
